"""One page a module; each has a function `page` that draws it. (Streamlit would take a folder `pages` for its own.)"""
