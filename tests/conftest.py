from hypothesis import settings

# Machines that run tests are slow at times; a property is about truth, not about time.
settings.register_profile("default", deadline=None)
settings.load_profile("default")
