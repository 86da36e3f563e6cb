// Native work that goes on while the process ends: threads that nobody joins, work that was given up.
//
// exit() destroys the static objects of ggml and llama.cpp, and a thread that computes with them then ends the process
// by a signal. So where work is in flight the process ends before that, with its own code.
#pragma once

#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>

namespace pyemo {

inline std::atomic<int> n_in_flight{0};

// Counts its lifetime as work.
class InFlight {
public:
    InFlight() { ++n_in_flight; }
    ~InFlight() { --n_in_flight; }
    InFlight(const InFlight &) = delete;
    InFlight & operator=(const InFlight &) = delete;
};

// What is registered last runs first, so this is called anew where llama.cpp has made more static objects: when it is
// loaded, and when the first model and the first engine are there. Only glibc says the code.
inline void end_before_work_in_flight() {
#ifdef __GLIBC__
    on_exit([](int status, void *) {
        if (n_in_flight > 0) {
            std::fflush(nullptr);
            _exit(status);
        }
    }, nullptr);
#endif
}

}  // namespace pyemo
