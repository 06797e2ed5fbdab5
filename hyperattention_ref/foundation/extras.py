"""How the optional parts of the package are installed, for every message that asks for one."""


def install(extra: str) -> str:
    """The command that installs an extra; the package is on no index."""
    return f'pip install ".[{extra}]" in a clone of hyperattention-ref'
