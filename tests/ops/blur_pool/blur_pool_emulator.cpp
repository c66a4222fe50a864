// Runs the GPU code of csrc/blur_pool on the CPU, block by block and thread by thread, and reports accesses out of
// bounds or unaligned, shared memory read before it is written or while another thread writes it, and results written
// twice or never. Compiled and called by test_blur_pool_emulator.py.
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdio>
#include <cstring>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "blur_pool/any_filter.h"
#include "blur_pool/backward.h"
#include "blur_pool/forward.h"
#include "blur_pool/tile.h"

using namespace andfast::pool;

namespace {

template <typename... Parts>
void require(bool holds, const Parts&... parts) {
  if (!holds) {
    std::ostringstream text;
    (text << ... << parts);
    throw std::runtime_error(text.str());
  }
}

struct Counts {
  int64_t reads = 0;         // values read from global memory
  int64_t vector_reads = 0;  // of these, by 16-byte accesses
  int64_t vector_writes = 0;
};

struct Word {
  float value = 0;
  int writer = -1;  // thread of the last access
  int reader = -1;
  int64_t written = -1;  // barrier interval of the last access
  int64_t read = -1;
};

template <typename T>
struct CheckedMemory {
  const T* from;
  int64_t readable;
  T* to;
  int64_t writable;
  std::vector<char>& done;
  Counts& counts;
  std::vector<Word> shared{};
  int64_t interval = 0;
  int thread = 0;

  Pack<T, kChunk<T>> load(const T* p, int count, bool vector) {
    Pack<T, kChunk<T>> pack{};
    require(count >= 0 && count <= kChunk<T> && (!vector || count == 0 || count == kChunk<T>), "odd count ", count);
    if (count > 0) {
      require(p >= from && p - from + count <= readable, "reads ", p - from, " of ", readable);
      require(!vector || reinterpret_cast<std::uintptr_t>(p) % 16 == 0, "unaligned load");
      std::memcpy(&pack, p, count * sizeof(T));
      counts.reads += count;
      counts.vector_reads += vector ? count : 0;
    }
    return pack;
  }

  template <int N>
  float widen(const Pack<T, N>& pack, int v) const {
    return static_cast<float>(pack.at[v]);
  }

  template <int N>
  void store(T* p, const Pack<T, N>& pack, int count, bool vector) {
    require(count >= 0 && count <= N && (!vector || count == N), "stores ", count, " of ", N);
    require(p >= to && p - to + count <= writable, "writes ", p - to, " of ", writable);
    require(!vector || reinterpret_cast<std::uintptr_t>(p) % (sizeof(T) * N) == 0, "unaligned store");
    for (int v = 0; v < count; ++v) {
      require(!done[p - to + v], "writes ", p - to + v, " twice");
      done[p - to + v] = 1;
      p[v] = pack.at[v];
    }
    counts.vector_writes += vector && sizeof(T) * N == 16 ? count : 0;
  }

  template <int N>
  void check_place(int at) const {
    require(at >= 0 && at + N <= static_cast<int>(shared.size()), "shared ", at, " of ", shared.size());
    require(at % (N < 4 ? N : 4) == 0, "unaligned access of ", N, " to shared ", at);
  }

  template <int N>
  void write(int at, const float (&values)[N]) {
    check_place<N>(at);
    for (int v = 0; v < N; ++v) {
      Word& word = shared[at + v];
      require(word.written != interval || word.writer == thread, "two threads write shared ", at + v);
      require(word.read != interval || word.reader == thread, "writes shared ", at + v, " while another reads it");
      word.value = values[v];
      word.writer = thread;
      word.written = interval;
    }
  }

  template <int N>
  void read(int at, float (&values)[N]) {
    check_place<N>(at);
    for (int v = 0; v < N; ++v) {
      Word& word = shared[at + v];
      require(word.written >= 0, "reads shared ", at + v, " before it is written");
      // Older values are left over from the buffer's previous use: this step should have written them.
      require(word.written < interval && word.written >= interval - 1, "reads shared ", at + v, " at the wrong time");
      word.reader = thread;
      word.read = interval;
      values[v] = word.value;
    }
  }
};

template <typename Thread, typename T, typename F>
void run_tiles(const Plan& plan, const F& filter, const T* from, int64_t readable, T* to, int64_t writable,
               Counts& counts) {
  std::vector<char> done(writable, 0);
  require(plan.threads <= kMaxThreads && plan.threads % 32 == 0, plan.threads, " threads");
  require(plan.shared_bytes() <= kMaxShared, plan.shared_bytes(), " bytes of shared memory");
  for (int64_t block = 0; block < plan.blocks; ++block) {
    CheckedMemory<T> memory{from, readable, to, writable, done, counts};
    memory.shared.resize(plan.shared_bytes() / 4);
    std::vector<Thread> threads;
    threads.reserve(plan.threads);
    const auto all = [&](const auto& act) {
      for (memory.thread = 0; memory.thread < plan.threads; ++memory.thread) {
        act(threads[memory.thread]);
      }
    };
    for (int n = 0; n < plan.threads; ++n) {
      threads.emplace_back(plan, filter, from, to, static_cast<unsigned>(block), n);
    }
    all([&](Thread& thread) {
      require(
          thread.begin() == threads[0].begin() && thread.end() == threads[0].end(), "threads disagree on the steps");
      thread.prepare(memory);
    });
    for (int step = threads[0].begin(); step < threads[0].end(); ++step) {
      all([&](Thread& thread) { thread.gather(memory, step); });
      if (threads[0].emits(step)) {
        ++memory.interval;  // __syncthreads()
        all([&](Thread& thread) { thread.emit(memory, step); });
      }
    }
  }
  for (int64_t n = 0; n < writable; ++n) {
    require(done[n], "never writes ", n);
  }
}

struct Call {
  bool forward;
  Sizes sizes;
  const double* taps;
  void* large;
  void* small;
  int multiprocessors;
};

template <typename T, int kFactor, int kTaps>
void tiles(const Call& c, int64_t* report) {
  using F = Filter<kFactor, kTaps>;
  F filter;
  std::copy_n(c.taps, kTaps, filter.taps);
  const Plan plan = make_plan(c.forward, c.sizes, kChunk<T>, reinterpret_cast<std::uintptr_t>(c.large),
                              reinterpret_cast<std::uintptr_t>(c.small), c.multiprocessors);
  auto* const large = static_cast<T*>(c.large);
  auto* const small = static_cast<T*>(c.small);
  const int64_t n_large = c.sizes.images * c.sizes.height * c.sizes.large_row();
  const int64_t n_small = n_large / kFactor / kFactor;
  Counts counts;
  const auto run = [&]<Layout kLayout>() {
    if (c.forward) {
      run_tiles<Forward<T, F, kLayout>>(plan, filter, large, n_large, small, n_small, counts);
    } else {
      run_tiles<Backward<T, F, kLayout>>(plan, filter, small, n_small, large, n_large, counts);
    }
  };
  switch (layout_of(plan)) {
    case Layout::kPixels: run.template operator()<Layout::kPixels>(); break;
    case Layout::kRows: run.template operator()<Layout::kRows>(); break;
    case Layout::kValues: run.template operator()<Layout::kValues>(); break;
  }
  const int64_t numbers[] = {
      static_cast<int64_t>(layout_of(plan)), counts.reads, counts.vector_reads, counts.vector_writes,
      plan.blocks, plan.threads, plan.shared_bytes(), plan.strips};
  std::copy(std::begin(numbers), std::end(numbers), report);
}

template <typename T>
void tiles(const Call& c, int64_t* report) {
  switch (c.sizes.factor * 10 + c.sizes.n_taps) {
    case 24: return tiles<T, 2, 4>(c, report);
    case 35: return tiles<T, 3, 5>(c, report);
    case 48: return tiles<T, 4, 8>(c, report);
    default: throw std::runtime_error("no such filter");
  }
}

template <typename T, typename Acc>
void any(const Call& c) {
  const Sizes& s = c.sizes;
  AnyFilter<Acc> filter{s.height, s.width, s.inner, s.factor, s.n_taps, {}};
  std::copy_n(c.taps, s.n_taps, filter.taps);
  auto* const large = static_cast<T*>(c.large);
  auto* const small = static_cast<T*>(c.small);
  const int64_t n_large = s.images * s.height * s.large_row();
  const int64_t results = c.forward ? n_large / s.factor / s.factor : n_large;
  for (int64_t at = 0; at < results; ++at) {
    (c.forward ? small : large)[at] = c.forward ? forward_at(filter, large, at) : backward_at(filter, small, at);
  }
}

}  // namespace

// Returns an error message or null. report: eight numbers about a run of the tiled kernels.
extern "C" const char* emulate(
    bool forward, bool with_tiles, int dtype, int64_t images, int height, int width, int inner, int factor, int n_taps,
    const double* taps, void* large, void* small, int multiprocessors, int64_t* report) {
  static std::string error;
  const Call c{forward, {images, height, width, inner, factor, n_taps}, taps, large, small, multiprocessors};
  try {
    switch (dtype) {
      case 0: with_tiles ? tiles<float>(c, report) : any<float, float>(c); break;
      case 1: with_tiles ? tiles<c10::Half>(c, report) : any<c10::Half, float>(c); break;
      case 2: with_tiles ? tiles<c10::BFloat16>(c, report) : any<c10::BFloat16, float>(c); break;
      default: any<double, double>(c); break;
    }
    return nullptr;
  } catch (const std::exception& problem) {
    error = problem.what();
    return error.c_str();
  }
}

// The launch plan of a call, without running it.
extern "C" void plan_of(
    bool forward, int chunk, int64_t images, int height, int width, int inner, int factor, int n_taps,
    int multiprocessors, int64_t* report) {
  const Plan p = make_plan(forward, {images, height, width, inner, factor, n_taps}, chunk, 0, 0, multiprocessors);
  const int64_t numbers[] = {
      static_cast<int64_t>(layout_of(p)), p.tile_columns, p.column_tiles, p.tile_images, p.blocks, p.threads,
      p.shared_bytes(), p.strips, p.strip_rows, p.slabs};
  std::copy(std::begin(numbers), std::end(numbers), report);
}
