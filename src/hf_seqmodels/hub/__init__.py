"""From a finished run to a folder that a stranger can load and understand."""
