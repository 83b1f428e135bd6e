"""One thread: the models of the tests are tiny, and a busy machine then slows them evenly instead of stalling them."""

import gc

import pytest
import torch

torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items):
    """Where several processes run the tests, one of them has all of a denoiser class, so that it measures it once."""
    for item in items:
        parameters = getattr(item, "callspec", None)
        name = parameters.params.get("name") if parameters is not None else None
        by_class = "test_denoisers_" in item.nodeid or "test_exact_classes" in item.nodeid
        item.add_marker(pytest.mark.xdist_group(str(name) if by_class and name else item.nodeid.split("::")[0]))


@pytest.hookimpl(trylast=True)
def pytest_collection_finish():
    """Modules and tests stay to the end: nobody looks through them for garbage again, which took up to a second."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish():
    gc.unfreeze()  # what others look for at the end is found
