"""The extension's version, as written into every result and read by the packaging."""

VERSION = "0.1.0"
