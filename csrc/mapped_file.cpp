#include "mapped_file.h"

#ifdef __linux__
#include <limits.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <cstdio>
#include <cstring>
#endif
#ifdef __GLIBC__
#include <malloc.h>
#endif

namespace pyemo {

void release_mapped_pages(const std::string & path) {
#ifdef __linux__
    char real[PATH_MAX];
    if (realpath(path.c_str(), real) == nullptr) return;
    FILE * maps = std::fopen("/proc/self/maps", "r");
    if (maps == nullptr) return;
    char line[PATH_MAX + 256];
    while (std::fgets(line, sizeof(line), maps) != nullptr) {
        unsigned long begin = 0, end = 0;
        char mode[5] = "";
        // "begin-end rw-p offset device inode      /path"
        if (std::sscanf(line, "%lx-%lx %4s", &begin, &end, mode) != 3) continue;
        const char * name = std::strchr(line, '/');
        if (name == nullptr || std::strncmp(name, real, std::strlen(real)) != 0 || name[std::strlen(real)] != '\n') continue;
        if (mode[1] == 'w') continue;  // a private page that was written would be lost
        madvise(reinterpret_cast<void *>(begin), end - begin, MADV_DONTNEED);  // locked pages refuse and stay
    }
    std::fclose(maps);
#else
    (void) path;
#endif
}

void release_freed_memory() {
#ifdef __GLIBC__
    malloc_trim(0);
#endif
}

}  // namespace pyemo
