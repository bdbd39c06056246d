"""Which refusals are worth another try: the NF agent and the CM proxy decide by it."""

from __future__ import annotations

import pytest

from nftrust.errors import NftrustError, Reason


@pytest.mark.parametrize("reason", [Reason.STORED_ROW_TAMPERED, Reason.IAK_USED, Reason.PROOF_INVALID])
def test_what_only_a_person_can_cure_is_not_tried_again(reason: Reason) -> None:
    assert not NftrustError(reason).transient


@pytest.mark.parametrize(
    "reason", [Reason.TOKEN_UNAVAILABLE, Reason.STORAGE_UNAVAILABLE, Reason.RATE_LIMITED, Reason.DEADLINE]
)
def test_what_heals_by_itself_is_tried_again(reason: Reason) -> None:
    assert NftrustError(reason).transient
