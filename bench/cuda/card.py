"""The card's clock, power and temperature, read from NVML by a thread of its own while a block of Python runs."""

import ctypes
import statistics
import threading
import time

GRAPHICS_TEMPERATURE, SM_CLOCK, MEMORY_CLOCK = 0, 1, 2  # NVML's enumerators


class _Nvml:
    """The few calls needed; absent where the driver's library is."""

    def __init__(self):
        self._library = ctypes.CDLL("libnvidia-ml.so.1")
        self._device = ctypes.c_void_p()
        if self._library.nvmlInit_v2() or self._library.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(self._device)):
            raise OSError("NVML does not answer")

    def _get(self, call, *arguments):
        value = ctypes.c_uint()
        return value.value if getattr(self._library, call)(self._device, *arguments, ctypes.byref(value)) == 0 else 0

    def read(self):
        return {
            "clocks.sm": self._get("nvmlDeviceGetClockInfo", SM_CLOCK),
            "clocks.mem": self._get("nvmlDeviceGetClockInfo", MEMORY_CLOCK),
            "power.draw": self._get("nvmlDeviceGetPowerUsage") / 1000,
            "temperature.gpu": self._get("nvmlDeviceGetTemperature", GRAPHICS_TEMPERATURE),
        }


class Readings:
    """`with Readings(period in seconds) as r: ...` leaves r.samples: [(seconds since the beginning, {field: value})]; none without NVML."""

    _nvml = None

    def __init__(self, period=0.02):
        self.samples, self._period, self._end = [], period, threading.Event()
        if Readings._nvml is None:
            try:
                Readings._nvml = _Nvml()
            except OSError:
                Readings._nvml = False

    def _watch(self):
        begin = time.monotonic()
        while not self._end.wait(self._period):
            self.samples.append((time.monotonic() - begin, Readings._nvml.read()))

    def __enter__(self):
        self._thread = threading.Thread(target=self._watch, daemon=True) if Readings._nvml else None
        if self._thread:
            self._thread.start()
        return self

    def __exit__(self, *_):
        self._end.set()
        if self._thread:
            self._thread.join()

    def median_of_second_half(self, field):
        """As the times of a burst are taken; None without samples."""
        values = [reading[field] for _, reading in self.samples[len(self.samples) // 2 :]]
        return statistics.median(values) if values else None

    def summary(self):
        fields = self.samples[0][1] if self.samples else ()
        columns = {name: [reading[name] for _, reading in self.samples] for name in fields}
        return {name: {"min": min(values), "median": statistics.median(values), "max": max(values)} for name, values in columns.items()}
