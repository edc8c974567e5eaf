"""The supervisor's part of tokens: keys of issuers, and the router as an issuer. Workers import nothing of this."""
