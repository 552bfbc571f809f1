"""Single files of the families of rectified flow, in the form in which their authors and ComfyUI have them.

``names.Names`` turns a transformer's weights into diffusers' and back, ``bundle.Bundle`` whole files; each family has a
module here with its names written out, and imports nothing else.
"""
