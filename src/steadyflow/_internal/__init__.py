"""Helpers without a public interface; the lab, which is released together with this package, uses them too."""
