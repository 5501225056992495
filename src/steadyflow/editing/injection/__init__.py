"""Editing with what the source's network attends to: prompt-to-prompt, plug-and-play, MasaCtrl, and injected values."""

from .methods import MasaCtrl, PlugAndPlay, PromptToPrompt, ValueInjection

__all__ = ["MasaCtrl", "PlugAndPlay", "PromptToPrompt", "ValueInjection"]
