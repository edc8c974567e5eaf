"""Tokens in the supervisor: fetches keys of issuers, and issues the router's own tokens. Not imported by workers."""
