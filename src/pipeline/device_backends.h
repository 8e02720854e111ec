#pragma once

namespace calibatt {

/// Makes make_backend know the backends of the devices that this build has kernels for: the lowest floor that links
/// them all. May be called any number of times.
void add_device_backends();

}  // namespace calibatt
