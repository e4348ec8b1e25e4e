"""The agent that runs inside a sandbox, in parts.

`sandbox.agent.source()` joins the parts into the one text that travels into the sandbox. They
import nothing of ours but one another. Annotations, docstrings and comments stay behind; all else
must run on Python 3.8 and import only modules of the standard library that are cheap to load.
"""
