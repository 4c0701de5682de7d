#include "data/byte_source.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

#include <cerrno>
#include <cstring>
#include <vector>

#include "kernels/core/error.h"

namespace sluice {

namespace {

constexpr size_t kInputBytes = size_t{256} << 10;

class PlainBytes final : public ByteSource {
 public:
  explicit PlainBytes(const std::string& path)
      : path_(path), fd_(::open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
    if (fd_ < 0) fail("open");
  }
  ~PlainBytes() override { ::close(fd_); }
  PlainBytes(const PlainBytes&) = delete;
  PlainBytes& operator=(const PlainBytes&) = delete;

  size_t read(char* to, size_t bytes) override {
    while (true) {
      const ssize_t count = ::read(fd_, to, bytes);
      if (count >= 0) return size_t(count);
      if (errno != EINTR) fail("read");
    }
  }
  const std::string& path() const { return path_; }

 private:
  [[noreturn]] void fail(const char* doing) const {
    throw IoError(fmt::format("{}: cannot {}: {}", path_, doing, std::strerror(errno)));
  }

  std::string path_;
  int fd_;
};

// What both formats share: compressed bytes in a buffer, refilled when they are used up.
class CompressedBytes : public ByteSource {
 public:
  explicit CompressedBytes(const std::string& path) : file_(path), input_(kInputBytes) {}

  size_t read(char* to, size_t bytes) final {
    while (true) {
      if (used_ == filled_ && !at_end_) refill();
      const bool starved = used_ == filled_;
      if (starved && !inside_) return 0;
      const size_t written = decompress(to, bytes);  // starved: what it still holds
      if (written > 0) return written;
      if (starved && inside_) damaged("ends in the middle of its data: it is incomplete");
    }
  }

 protected:
  // Takes what it can of ahead() and returns how much it wrote, which may be nothing.
  virtual size_t decompress(char* to, size_t bytes) = 0;

  const char* ahead() const { return input_.data() + used_; }
  size_t ahead_bytes() const { return filled_ - used_; }
  void take(size_t bytes) { used_ += bytes; }
  // Whether a stream has begun and not ended.
  void set_inside(bool inside) { inside_ = inside; }
  [[noreturn]] void damaged(const std::string& why) const {
    throw DataError(fmt::format("{}: the compressed file {}", file_.path(), why));
  }

 private:
  void refill() {
    used_ = 0;
    filled_ = file_.read(input_.data(), input_.size());
    at_end_ = filled_ == 0;
  }

  PlainBytes file_;
  std::vector<char> input_;
  size_t used_ = 0;
  size_t filled_ = 0;
  bool at_end_ = false;
  bool inside_ = false;
};

class GzipBytes final : public CompressedBytes {
 public:
  explicit GzipBytes(const std::string& path) : CompressedBytes(path) {
    constexpr int kGzipOnly = 16;
    SLUICE_CHECK(::inflateInit2(&stream_, MAX_WBITS + kGzipOnly) == Z_OK, "zlib has no memory");
  }
  ~GzipBytes() override { ::inflateEnd(&stream_); }

 protected:
  size_t decompress(char* to, size_t bytes) override {
    stream_.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(ahead()));
    stream_.avail_in = uInt(ahead_bytes());
    stream_.next_out = reinterpret_cast<Bytef*>(to);
    stream_.avail_out = uInt(bytes);
    const int status = ::inflate(&stream_, Z_NO_FLUSH);
    // No progress without more output or input is not an error: the caller comes again.
    if (status != Z_OK && status != Z_STREAM_END && status != Z_BUF_ERROR)
      damaged(fmt::format("is damaged: {}", stream_.msg != nullptr ? stream_.msg : "not gzip"));
    take(ahead_bytes() - stream_.avail_in);
    set_inside(status != Z_STREAM_END);
    if (status == Z_STREAM_END) ::inflateReset(&stream_);
    return bytes - stream_.avail_out;
  }

 private:
  z_stream stream_{};
};

class ZstdBytes final : public CompressedBytes {
 public:
  explicit ZstdBytes(const std::string& path)
      : CompressedBytes(path), stream_(::ZSTD_createDStream(), &::ZSTD_freeDStream) {
    SLUICE_CHECK(stream_ != nullptr, "zstd has no memory");
  }

 protected:
  size_t decompress(char* to, size_t bytes) override {
    ZSTD_inBuffer in{.src = ahead(), .size = ahead_bytes(), .pos = 0};
    ZSTD_outBuffer out{.dst = to, .size = bytes, .pos = 0};
    const size_t status = ::ZSTD_decompressStream(stream_.get(), &out, &in);
    if (::ZSTD_isError(status) != 0)
      damaged(fmt::format("is damaged: {}", ::ZSTD_getErrorName(status)));
    take(in.pos);
    set_inside(status != 0);
    return out.pos;
  }

 private:
  std::unique_ptr<ZSTD_DStream, size_t (*)(ZSTD_DStream*)> stream_;
};

}  // namespace

std::unique_ptr<ByteSource> open_bytes(const std::string& path, Compression compression) {
  switch (compression) {
    case Compression::none:
      return std::make_unique<PlainBytes>(path);
    case Compression::gzip:
      return std::make_unique<GzipBytes>(path);
    case Compression::zstd:
      return std::make_unique<ZstdBytes>(path);
  }
  throw Error(ExitCode::bug, "a compression without a reader");
}

}  // namespace sluice
