// Launch plan of the tiled GPU kernels: how work is divided into thread blocks. Plain host code without CUDA, tested on
// the CPU.
//
// A block processes a range of columns (and, where pixels have many values, a range of those) of one or more images,
// and walks down a strip of rows. A row is divided into 16-byte chunks, one per thread: the forward pass reads chunks
// of the large side, the backward pass writes them. docs/kernels/blur_pool.md has the counts behind the sizes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>

namespace andfast::pool {

constexpr int kChunkBytes = 16;
constexpr int kMaxThreads = 288;   // x4, 8 output columns of 8 chunks per pixel, with margins: (32 + 4) * 8
constexpr int kResident = 3;       // target resident blocks per multiprocessor
constexpr int kWidePixel = 32;     // values per pixel above which chunks never cross pixels
constexpr int kMaxShared = 48 * 1024;  // bytes of shared memory available without opting in
constexpr int kPixelChunks = 8;    // chunks per pixel in a tile: a full 128-byte line
constexpr int kMinRows = 4;        // min. output rows of a strip; below, most reads would be margins

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Large side: images of (height, width) pixels of `inner` contiguous values. NCHW is N * C images with 1 value per
// pixel, NHWC is N images with C. height, width and width * inner must be below 2^30.
struct Sizes {
  int64_t images;
  int32_t height;
  int32_t width;
  int32_t inner;
  int32_t factor;
  int32_t n_taps;

  int32_t pad() const { return (n_taps - factor) / 2; }
  int32_t reach() const { return static_cast<int32_t>(ceil_div(n_taps, factor)); }  // outputs in reach of an input
  int64_t large_row() const { return int64_t{width} * inner; }
  int64_t small_row() const { return large_row() / factor; }
};

// Kernel argument.
struct Plan {
  int64_t images;
  int32_t height;  // large side
  int32_t width;
  int32_t inner;
  int32_t by_pixel;       // chunks lie within one pixel, else anywhere in the row
  int32_t vector_large;   // the large side is accessed 16 bytes at a time, else value by value
  int32_t vector_small;
  int32_t tile_inner;     // values per pixel in a tile
  int32_t slabs;          // tiles per pixel
  int32_t tile_columns;   // small side
  int32_t column_tiles;
  int32_t tile_images;
  int32_t image_groups;
  int32_t strip_rows;     // small side; backward: blocks of `factor` rows of the large side
  int32_t strips;
  int32_t chunks;         // per image, large side of the tile
  int32_t small_chunks;   // per image, small side of the tile; backward only
  int32_t shared_row;     // fp32 values per image in one of the two shared-memory buffers
  int32_t threads;
  int64_t blocks;

  int64_t shared_bytes() const { return int64_t{2} * 4 * tile_images * shared_row; }
};

// chunk: values per 16 bytes. large, small: addresses of the tensors.
inline Plan make_plan(
    bool forward, const Sizes& s, int32_t chunk, std::uintptr_t large, std::uintptr_t small, int32_t multiprocessors) {
  Plan p{};
  p.images = s.images;
  p.height = s.height;
  p.width = s.width;
  p.inner = s.inner;
  p.by_pixel = s.inner % chunk == 0 || s.inner > kWidePixel;
  const auto whole_chunks = [&](int64_t row, std::uintptr_t address) {
    return (p.by_pixel ? s.inner : row) % chunk == 0 && address % kChunkBytes == 0;
  };
  p.vector_large = whole_chunks(s.large_row(), large);
  p.vector_small = whole_chunks(s.small_row(), small);

  // Divide a pixel's chunks into slabs of equal size.
  const auto pixel_chunks = ceil_div(s.inner, chunk);
  p.slabs = p.by_pixel ? static_cast<int32_t>(ceil_div(pixel_chunks, kPixelChunks)) : 1;
  p.tile_inner = p.by_pixel ? static_cast<int32_t>(ceil_div(pixel_chunks, p.slabs)) * chunk : s.inner;

  // Max chunks that a run of pixels touches, wherever it begins.
  const auto covering = [&](int64_t columns, int64_t all) {
    return p.by_pixel ? std::min(columns, all) * (p.tile_inner / chunk)
                      : std::min(ceil_div(columns * s.inner, chunk) + 1, ceil_div(all * s.inner, chunk));
  };
  const int32_t small_width = s.width / s.factor;
  const auto large_chunks = [&](int64_t columns) {
    return covering(s.factor * columns + (forward ? 2 * s.pad() : 0), s.width);
  };
  // Small columns that large columns depend on, the margin of zeros around the image included.
  const auto small_chunks = [&](int64_t columns) {
    return forward ? int64_t{0} : covering(columns + s.reach() + 1, int64_t{1} << 30);
  };
  const auto threads_of = [&](int64_t columns) { return std::max(large_chunks(columns), small_chunks(columns)); };
  // Backward: tiles must not share a chunk of the large side.
  const auto step = forward || p.by_pixel ? 1 : chunk / std::gcd(chunk, s.factor * s.inner);
  int64_t columns = step;
  while (columns < small_width && threads_of(columns + step) <= kMaxThreads) {
    columns += step;
  }
  columns = ceil_div(ceil_div(small_width, ceil_div(small_width, columns)), step) * step;  // tiles of equal size
  p.tile_columns = static_cast<int32_t>(columns);
  p.column_tiles = static_cast<int32_t>(ceil_div(small_width, columns));
  p.chunks = static_cast<int32_t>(large_chunks(columns));
  p.small_chunks = static_cast<int32_t>(small_chunks(columns));
  // Forward: shared memory also holds the margins beyond the image.
  const int64_t unbounded = int64_t{1} << 30;
  p.shared_row = static_cast<int32_t>(
      (forward ? covering(s.factor * columns + 2 * s.pad(), unbounded) : p.small_chunks) * chunk);

  // Short rows: several images per block, in groups of equal size.
  const auto per_image = threads_of(columns);
  const auto fit = std::max<int64_t>(
      1, std::min({int64_t{kMaxThreads} / per_image, int64_t{kMaxShared} / (2 * 4 * p.shared_row), s.images}));
  const auto groups = ceil_div(s.images, fit);
  p.tile_images = static_cast<int32_t>(ceil_div(s.images, std::max<int64_t>(1, groups)));
  p.image_groups = static_cast<int32_t>(groups);
  p.threads = static_cast<int32_t>(ceil_div(p.tile_images * per_image, 32) * 32);

  // The longest strips that still fill every multiprocessor: neighboring strips both read the rows at their
  // boundary, too far apart in time for the L2 cache to help.
  const int64_t rows = s.height / s.factor + (forward || s.pad() == 0 ? 0 : 1);
  const int64_t tiles = std::max<int64_t>(1, groups * p.slabs * p.column_tiles);
  const int64_t filling = (int64_t{multiprocessors} * kResident + tiles / 2) / tiles;
  const int64_t strips = std::clamp<int64_t>(filling, 1, std::max<int64_t>(1, rows / kMinRows));
  p.strip_rows = static_cast<int32_t>(ceil_div(rows, strips));
  p.strips = static_cast<int32_t>(ceil_div(rows, p.strip_rows));
  p.blocks = groups * p.slabs * p.column_tiles * p.strips;
  return p;
}

}  // namespace andfast::pool
