"""The package's version, which the ledger notes."""

VERSION = "0.1.0"
