"""Editing with what the source's network attends to: prompt-to-prompt, plug-and-play, MasaCtrl, and injected values."""

from .injected import Injected
from .methods import MasaCtrl, PlugAndPlay, PromptToPrompt, ValueInjection

__all__ = ["Injected", "MasaCtrl", "PlugAndPlay", "PromptToPrompt", "ValueInjection"]
