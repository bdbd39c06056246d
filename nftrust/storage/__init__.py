"""The roles' databases: group commit, audit chain, idempotency, migrations."""

from nftrust.storage.store import Store
from nftrust.storage.tables import UtcMicros, create_shared_tables, new_metadata
from nftrust.storage.transaction import Executor, Transaction

__all__ = ["Executor", "Store", "Transaction", "UtcMicros", "create_shared_tables", "new_metadata"]
