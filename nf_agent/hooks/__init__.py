"""How the NF learns of its certificate (docs/hooks.md): files, callbacks, a command.

Each kind is a :class:`Hook`; :class:`Hooks` is the one port by which the rest
of the agent says that there is another certificate.
"""

from nf_agent.hooks.callbacks import Callback, Callbacks
from nf_agent.hooks.command import CommandHook
from nf_agent.hooks.files import CredentialFiles
from nf_agent.hooks.port import Hook, Hooks

__all__ = ["Callback", "Callbacks", "CommandHook", "CredentialFiles", "Hook", "Hooks"]
