"""fmcortex: foundation models of the mouse visual cortex."""

__version__ = "0.1.0"
