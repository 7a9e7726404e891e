"""Stages: small classes with pure methods, tested without Ray. One file per stage."""
