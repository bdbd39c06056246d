"""Finds the registrar of a foreign CA/RA: ours for EJBCA, or a plug-in (docs/foreign-ca.md).

A plug-in is an entry point in the group ``nftrust.registrars`` whose object
is a :data:`RegistrarFactory`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import cast

from cmproxy.adapters.ejbca import EjbcaRegistrar
from cmproxy.ports import Registrar
from nftrust.errors import NftrustError, Reason

GROUP = "nftrust.registrars"
#: Makes a registrar of the strings in ``foreign_ca_ra.settings``; raises NftrustError(CONFIG_INVALID).
RegistrarFactory = Callable[[Mapping[str, str]], Registrar]
_BUILT_IN: Mapping[str, RegistrarFactory] = {"ejbca": EjbcaRegistrar.from_settings}


def load_registrar(name: str, settings: Mapping[str, str]) -> Registrar:
    """Raises NftrustError(CONFIG_INVALID), also where there is no such registrar or more than one."""
    factory = _BUILT_IN.get(name)
    if factory is None:
        found = list(entry_points(group=GROUP, name=name))
        if len(found) != 1:
            raise NftrustError(Reason.CONFIG_INVALID, f"foreign_ca_ra.registrar: {len(found)} have this name")
        factory = _load(found[0])
    return factory(settings)


def _load(plug_in: EntryPoint) -> RegistrarFactory:
    try:
        return cast("RegistrarFactory", plug_in.load())
    except (ImportError, AttributeError) as error:
        why = f"foreign_ca_ra.registrar: {plug_in.value} cannot be imported ({type(error).__name__})"
        raise NftrustError(Reason.CONFIG_INVALID, why) from None
