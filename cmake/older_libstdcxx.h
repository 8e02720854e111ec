// Included before every source of the wheel's library. std::condition_variable::wait has been in libstdc++ since
// GCC 4.4; GCC 12 changed its exception specification and gave it a second version, which is the one that a compiler
// takes by itself. The first one does the same.
__asm__(
    ".symver _ZNSt18condition_variable4waitERSt11unique_lockISt5mutexE,"
    "_ZNSt18condition_variable4waitERSt11unique_lockISt5mutexE@GLIBCXX_3.4.11");
