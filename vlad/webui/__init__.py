"""The web page: prompt, editable layout, images, editing. A Gradio app."""
