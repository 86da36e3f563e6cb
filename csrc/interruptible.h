// Work of llama.cpp that nothing can stop, on a thread of its own, so that whoever waits for it can be interrupted.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <future>
#include <memory>
#include <system_error>
#include <thread>

#include "errors.h"
#include "in_flight.h"

namespace pyemo {

constexpr int64_t interrupt_check_us = 50'000;  // how often a long call asks whether to stop

// Whether to stop; empty where nothing can interrupt the caller.
using Interrupted = std::function<bool()>;

// Returns work(given_up). An interrupt gives the work up: it sees `given_up`, and its thread goes on alone until it
// ends. So `work` owns all that it uses.
template <typename Work>
auto interruptible(Work work, const Interrupted & interrupted) -> decltype(work(std::declval<const std::atomic<bool> &>())) {
    using Result = decltype(work(std::declval<const std::atomic<bool> &>()));
    const auto given_up = std::make_shared<std::atomic<bool>>(false);
    if (!interrupted) {
        return work(*given_up);
    }
    const auto task = std::make_shared<std::packaged_task<Result()>>(
        [work = std::move(work), given_up]() mutable { return work(*given_up); });
    std::future<Result> result = task->get_future();
    try {
        std::thread([task] {
            const InFlight in_flight;
            (*task)();
        }).detach();
    } catch (const std::system_error &) {
        (*task)();  // no room for a thread
    }
    while (result.wait_for(std::chrono::microseconds(interrupt_check_us)) != std::future_status::ready) {
        if (interrupted()) {
            *given_up = true;
            throw Error(ErrorKind::decode_aborted, "interrupted");
        }
    }
    return result.get();
}

}  // namespace pyemo
