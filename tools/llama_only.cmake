# CMake reads this at llama.cpp's own project(), when the Makefile compiles llama-cpp-python: the
# library of llama.cpp's programs, which pyemo does not link, is a third of the work.
set(LLAMA_BUILD_COMMON OFF)
