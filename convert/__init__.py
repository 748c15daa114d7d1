"""Programs that turn other formats into GGUF and back; imports realm_jax, which never imports it."""

__all__: list[str] = []
