"""The ports between the layers: Protocols, and the plain values that cross them.

All that can fail raises ``protocol.errors.RegistryError`` (an answer of the protocol) or one of ``ports.errors``.
"""
