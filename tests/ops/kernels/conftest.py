"""Mends Triton's interpreter: a scalar condition turns a mask into integers, which 3.9's loads and stores refuse."""

from functools import wraps

from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


def _with_boolean(place, method):
    @wraps(method)
    def call(self, *handles):
        mask = handles[place]
        mask = TensorHandle(mask.data.astype(bool), mask.dtype)
        return method(self, *handles[:place], mask, *handles[place + 1 :])

    return call


InterpreterBuilder.create_masked_load = _with_boolean(1, InterpreterBuilder.create_masked_load)
InterpreterBuilder.create_masked_store = _with_boolean(2, InterpreterBuilder.create_masked_store)
