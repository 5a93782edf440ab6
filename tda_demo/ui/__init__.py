"""The page. Nothing outside this package and ``app.py`` imports gradio."""
