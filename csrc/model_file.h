// The look at a model file before llama.cpp reads it: does its header say anything impossible?
//
// llama.cpp's loader trusts some of what a header says; a wrong number there ends the process with a
// division by zero, a read outside the file or an endless loop. This look is bounded: it reads the header
// once, believes no count or length before comparing it with the file's size, and allocates no more than
// the header is long. What it cannot foresee meets abort_guard.h. docs/hostile-input.md lists what is left.
#pragma once

#include <string>
#include <vector>

namespace pyemo {

// Throws model_load with the file's name and what is wrong. The other parts of a split model are
// looked at too, as far as their structure goes. Returns the rows of its table of learned positions, 0 without one.
int check_model_file(const std::string & path);

// The files of the model, in order: path alone unless its header says that it is the first of several. Looks at no
// other file.
std::vector<std::string> model_parts(const std::string & path);

}  // namespace pyemo
