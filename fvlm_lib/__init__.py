"""fvlm_lib: differential encoding and foveated vision-language models, measured.

Import the module you need (`from fvlm_lib.modeling_fvlm import FoveatedVLM`); this file imports
nothing, so that a command line starts in the time its own subject needs.
"""

__version__ = "0.1.0"
