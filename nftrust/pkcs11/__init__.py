"""PKCS#11 tokens: typed operations, one owner per token, pyca keys that live there.

Others use :class:`~nftrust.pkcs11.client.TokenClient`, the operations and
:func:`~nftrust.pkcs11.keys.token_private_key`; the rest is machinery.
"""
