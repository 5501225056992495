"""Guiders and samplers: what is called when, with what, as in ComfyUI's module of this name."""

import math

import torch


class Sampler:
    def sample(self):
        raise NotImplementedError

    def max_denoise(self, model_wrap, sigmas):
        top, first = float(model_wrap.inner_model.model_sampling.sigma_max), float(sigmas[0])
        return first > top or math.isclose(top, first, rel_tol=1e-5)


class Masked:
    """The model that samplers call, with a part of the latent held where a mask is 0."""

    def __init__(self, guider, noise, latent):
        self.inner_model, self.noise, self.latent = guider, noise, latent

    def __call__(self, x, sigma, denoise_mask, model_options=None, seed=None):
        if denoise_mask is None:
            return self.inner_model(x, sigma, model_options=model_options, seed=seed)
        sampling = self.inner_model.inner_model.model_sampling
        held = sampling.noise_scaling(sigma.view(-1, 1, 1, 1), self.noise, self.latent)
        mixed = x * denoise_mask + held * (1.0 - denoise_mask)
        found = self.inner_model(mixed, sigma, model_options=model_options, seed=seed)
        return found * denoise_mask + self.latent * (1.0 - denoise_mask)


class KSAMPLER(Sampler):
    def __init__(self, sampler_function, extra_options=None, inpaint_options=None):
        self.sampler_function, self.extra_options = sampler_function, extra_options or {}

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ):
        extra_args["denoise_mask"] = denoise_mask
        sampling, model = model_wrap.inner_model.model_sampling, Masked(model_wrap, noise, latent_image)
        start = sampling.noise_scaling(sigmas[0], noise, latent_image, self.max_denoise(model_wrap, sigmas))
        steps = len(sigmas) - 1
        seen = callback and (lambda found: callback(found["i"], found["denoised"], found["x"], steps))
        options = {"extra_args": extra_args, "callback": seen, "disable": disable_pbar, **self.extra_options}
        return sampling.inverse_noise_scaling(sigmas[-1], self.sampler_function(model, start, sigmas, **options))


class CFGGuider:
    def __init__(self, model_patcher):
        self.model_patcher, self.model_options = model_patcher, model_patcher.model_options
        self.original_conds, self.cfg = {}, 1.0

    def set_conds(self, positive, negative):
        self.inner_set_conds({"positive": positive, "negative": negative})

    def inner_set_conds(self, conds):
        for name, given in conds.items():
            self.original_conds[name] = [{**options, "cross_attn": tensor} for tensor, options in given]

    def set_cfg(self, cfg):
        self.cfg = cfg

    def __call__(self, x, timestep, model_options=None, seed=None):
        return self.predict_noise(x, timestep, model_options, seed)

    def predict_noise(self, x, timestep, model_options=None, seed=None):
        def under(name):
            return self.inner_model.apply_model(x, timestep, self.conds[name][0]["cross_attn"])

        positive = under("positive")
        if math.isclose(self.cfg, 1.0):
            return positive
        negative = under("negative")
        return negative + (positive - negative) * self.cfg

    def sample(
        self, noise, latent_image, sampler, sigmas, denoise_mask=None, callback=None, disable_pbar=False, seed=None
    ):
        if sigmas.shape[-1] == 0:
            return latent_image
        self.conds = {name: [dict(one) for one in given] for name, given in self.original_conds.items()}
        self.inner_model = self.model_patcher.model
        if denoise_mask is not None:
            mask = denoise_mask.reshape(-1, 1, *denoise_mask.shape[-2:])
            mask = torch.nn.functional.interpolate(mask, latent_image.shape[-2:], mode="bilinear")
            denoise_mask = mask.expand(latent_image.shape)
        if torch.count_nonzero(latent_image):
            latent_image = self.inner_model.process_latent_in(latent_image)
        extra = {"model_options": dict(self.model_options), "seed": seed}
        found = sampler.sample(self, sigmas, extra, callback, noise, latent_image, denoise_mask, disable_pbar)
        found = self.inner_model.process_latent_out(found.to(torch.float32))
        del self.inner_model, self.conds
        return found
