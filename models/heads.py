"""The heads of stage two: what makes a target of the transformer's output."""
from models.CategoricalHead import AutoregressiveHead, CategoricalHead, IndexHead
from models.DiffMLPs import DDPMHead, SiTHead
from models.DistilledHead import DistilledHead
from models.SiT1D import SiT1DHead

HEADS = {"SiT": SiTHead, "DDPM": DDPMHead, "SiT1D": SiT1DHead, "Cat": CategoricalHead,
         "CatAR": AutoregressiveHead, "Index": IndexHead, "Distilled": DistilledHead}
# Of the zoo's rows. The others: a distilled head is made from a trained one (distill_head.py), and a
# categorical one needs a grid.
HEADS_OF_ALL, HEADS_OF_GRIDS = ("SiT", "DDPM", "SiT1D"), ("Cat", "CatAR")
HEADS_IN_ORDER = {"FSQ-GPT": "CatAR", "FSQ-GPT-Index": "Index"}  # of the autoregressive families
