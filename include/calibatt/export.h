#pragma once

/// Marks what libcalibatt's users can link to. Everything else in the library is hidden.
#define CALIBATT_API __attribute__((visibility("default")))
