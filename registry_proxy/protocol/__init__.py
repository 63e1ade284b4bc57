"""The texts of the protocol: pure values and parsers, standard library only, no I/O.

Cited as ``spec``: OCI distribution-spec 1.1; as ``token-spec``: CNCF distribution, docs/content/spec/auth.
"""
