import os

from hypothesis import settings

# Bits are compared, which CPUs alone promise; Ray's workers inherit this.
os.environ["CUDA_VISIBLE_DEVICES"] = ""

# Machines that run tests are slow at times; a property is about truth, not about time.
settings.register_profile("default", deadline=None)
settings.load_profile("default")
