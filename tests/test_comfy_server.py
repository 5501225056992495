"""The example workflows, as they are, in ComfyUI's own server: its loaders, its checks of a prompt and its executor.

They run where STEADYFLOW_COMFYUI names ComfyUI's folder and STEADYFLOW_COMFYUI_PYTHON a Python with its requirements.
The checkpoint is random (see comfy_server.py), and the pictures are 64 pixels wide.
"""

import copy
import json
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
from PIL import Image

import comfy_server

FOLDER, PYTHON = (os.environ.get(name, "") for name in ("STEADYFLOW_COMFYUI", "STEADYFLOW_COMFYUI_PYTHON"))
pytestmark = pytest.mark.skipif(
    not (FOLDER and PYTHON), reason="ComfyUI's server: STEADYFLOW_COMFYUI and STEADYFLOW_COMFYUI_PYTHON name it"
)
ROOT = Path(__file__).parents[1]
WORKFLOWS = {path.stem: json.loads(path.read_text()) for path in sorted((ROOT / "comfy" / "api_workflows").glob("*"))}
SHOWN = {
    "sample": ["SaveImage"],
    "invert_and_decode": ["SaveImage"],
    "edit": ["PreviewAny", "SaveImage"],
    "diagnose": ["PreviewAny", "PreviewAny", "PreviewImage"],
}
PATIENCE = 3000
"""How often the server is asked whether it has started, or a workflow has ended."""


class Server:
    def __init__(self, base):
        self.base = base
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self.port = str(found.getsockname()[1])
        arguments = [PYTHON, comfy_server.__file__, FOLDER, self.port, str(base)]
        path = {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "2"}
        self.log = (base / "log").open("w")
        self.process = subprocess.Popen(
            arguments, cwd=base, env=os.environ | path, stdout=self.log, stderr=subprocess.STDOUT
        )

    def ask(self, path, sent=None):
        """What the server answers, and its status."""
        data = None if sent is None else json.dumps(sent).encode()
        request = Request(f"http://127.0.0.1:{self.port}{path}", data, {"Content-Type": "application/json"})
        try:
            with urlopen(request) as answer:
                return json.load(answer), answer.status
        except HTTPError as error:
            return json.loads(error.read()), error.code

    def started(self):
        try:
            return bool(self.ask("/queue"))
        except OSError:
            assert self.process.poll() is None, (self.base / "log").read_text()[-2000:]
            return False

    def run(self, prompt):
        """The history of a workflow that has been run."""
        answer, status = self.ask("/prompt", {"prompt": prompt})
        assert (status, answer.get("node_errors")) == (200, {}), answer
        ended = self.within(lambda: self.ask(f"/history/{answer['prompt_id']}")[0])
        return ended[answer["prompt_id"]]

    def picture(self, output):
        (image,) = output["images"]
        folder = self.base / ("temp" if image["type"] == "temp" else "output") / image["subfolder"]
        return np.asarray(Image.open(folder / image["filename"]).convert("RGB"), dtype=int)

    def within(self, asked):
        """What is answered at last."""
        for _ in range(PATIENCE):
            if found := asked():
                return found
            time.sleep(0.3)
        raise AssertionError((self.base / "log").read_text()[-2000:])


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    base = tmp_path_factory.mktemp("comfyui")
    for name in ("custom_nodes", "input", "output", "user", "models/checkpoints"):
        (base / name).mkdir(parents=True)
    shutil.copytree(ROOT / "comfy" / "src" / "steadyflow_comfy", base / "custom_nodes" / "steadyflow_comfy")
    colours = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(colours).resize((64, 64), Image.Resampling.BICUBIC).save(base / "input" / "example.png")
    made = Server(base)
    made.within(made.started)
    yield made
    made.process.terminate()
    made.process.wait()
    made.log.close()


def small(name):
    """A workflow, whose empty latents are as small as the picture."""
    prompt = copy.deepcopy(WORKFLOWS[name])
    for node in prompt.values():
        if node["class_type"] == "EmptyLatentImage":
            node["inputs"] |= {"width": 64, "height": 64}
    return prompt


def failure(history):
    """What a workflow that broke off says."""
    return next(said["exception_message"] for kind, said in history["status"]["messages"] if kind == "execution_error")


def test_every_workflow_has_been_thought_of():
    assert set(WORKFLOWS) == set(SHOWN)


def test_the_server_offers_every_node(server):
    listed = {name for name in server.ask("/object_info")[0] if name.startswith("SteadyFlow")}
    used = {node["class_type"] for prompt in WORKFLOWS.values() for node in prompt.values()}
    assert len(listed) == 8
    assert {name for name in used if name.startswith("SteadyFlow")} <= listed


@pytest.mark.parametrize("name", WORKFLOWS)
def test_a_workflow_runs_to_its_end_and_shows_its_pictures(name, server):
    prompt = small(name)
    history = server.run(prompt)
    assert history["status"]["status_str"] == "success", failure(history)
    outputs = history["outputs"]
    assert sorted(prompt[node]["class_type"] for node in outputs) == SHOWN[name]
    for output in outputs.values():
        if "images" in output:
            assert server.picture(output).std() > 5.0
        else:
            assert any(word in output["text"][0] for word in ("evaluations", "cause"))


def test_a_sampler_draws_the_picture_of_comfyuis_own(server):
    """`ddim` is Euler's method in the noise level: the same picture as ComfyUI's `euler`, on the same sigmas."""
    prompt = small("sample")
    (chosen,) = (node for node in prompt.values() if node["class_type"] == "SteadyFlowSampler")
    chosen["inputs"] = {"solver": "ddim", "options": ""}
    ours = server.run(prompt)
    chosen |= {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}}
    theirs = server.run(prompt)
    pictures = [server.picture(*history["outputs"].values()) for history in (ours, theirs)]
    assert pictures[0].std() > 5.0
    assert np.abs(pictures[0] - pictures[1]).max() <= 1


def test_what_cannot_be_honoured_is_refused_by_name_and_the_server_lives_on(server):
    prompt = small("edit")
    (edit,) = (node for node in prompt.values() if node["class_type"] == "SteadyFlowEdit")
    edit["inputs"]["options"] = "avarage=2"
    said = failure(server.run(prompt))
    assert "avarage" in said
    assert "average" in said
    edit["inputs"]["method"] = "flow-edits"
    answer, status = server.ask("/prompt", {"prompt": prompt})
    assert status == 400
    assert "flow-edits" in json.dumps(answer)
    assert server.started()


READY = "return Boolean(window.app && app.graph && LiteGraph.registered_node_types['SteadyFlowEdit'])"
LOADED = """
const [graph, done] = arguments;
app.loadGraphData(graph).then(() => app.graphToPrompt()).then(prompt => done(prompt.output), error => done(`${error}`));
"""


@pytest.mark.parametrize("name", WORKFLOWS)
def test_the_editor_makes_of_a_workflow_what_the_server_is_given(name, server, browser):
    """Its own form, with a place for every node, and the other are the same workflow."""
    browser.get(f"http://127.0.0.1:{server.port}/")
    server.within(lambda: browser.execute_script(READY))
    drawn = ROOT / "comfy" / "src" / "steadyflow_comfy" / "example_workflows" / f"{name}.json"
    made = browser.execute_async_script(LOADED, json.loads(drawn.read_text()))
    assert {key: (node["class_type"], node["inputs"]) for key, node in made.items()} == {
        key: (node["class_type"], node["inputs"]) for key, node in WORKFLOWS[name].items()
    }
