from .compare_programs import assert_parity as assert_parity
from .compare_programs import compare as compare
from .findings import Report as Report
from .perturb import perturbed as perturbed
from .program import jax_program as jax_program
from .program import torch_program as torch_program
from .recording import read as read
from .recording import record as record
