"""Masks, scores, selection, rewinding and tickets. Imports torch, never Lightning."""
