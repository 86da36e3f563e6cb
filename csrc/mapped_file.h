// Memory that a model's file takes while nobody reads it.
//
// llama.cpp maps the whole file and asks for all its pages at once, header and vocabulary included, and
// copies some tensors into another layout. Pages nobody reads again still count for the process.
#pragma once

#include <string>

namespace pyemo {

// Gives back the pages of this file's mappings in this process. They come back from the page cache when
// they are read, unchanged. Does nothing where the system does not show its mappings (only Linux does).
void release_mapped_pages(const std::string & path);

// Gives freed memory back to the system, which allocators keep. Does nothing but with glibc.
void release_freed_memory();

}  // namespace pyemo
