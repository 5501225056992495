"""The folders of models, by their names."""

import os
import tempfile

models_dir = tempfile.mkdtemp()
folder_names_and_paths = {}


def add_model_folder_path(folder_name, full_folder_path, is_default=False):
    folders = folder_names_and_paths.setdefault(folder_name, ([], set()))[0]
    if full_folder_path not in folders:
        folders.append(full_folder_path)


def get_filename_list(folder_name):
    folders = folder_names_and_paths[folder_name][0]
    return sorted(name for folder in folders if os.path.isdir(folder) for name in os.listdir(folder))


def get_full_path_or_raise(folder_name, filename):
    for folder in folder_names_and_paths[folder_name][0]:
        if os.path.isfile(path := os.path.join(folder, filename)):
            return path
    raise FileNotFoundError(f"Model in folder '{folder_name}' with filename '{filename}' not found.")
