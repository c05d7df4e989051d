"""Range tests, suggestions and cycles. Imports torch, never Lightning."""
