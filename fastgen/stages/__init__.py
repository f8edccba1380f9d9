"""The three kinds of request: how each asks (``build_prompt``) and how each reads the answer (``parse``); all pure."""
