#include "trainer/tensorboard.h"

#include <unistd.h>

#include <array>
#include <bit>
#include <chrono>
#include <filesystem>

namespace sluice {
namespace {

// Reflected CRC-32C (Castagnoli, RFC 3720), one table lookup a byte.
constexpr std::array<uint32_t, 256> make_crc_table() {
  std::array<uint32_t, 256> table{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t crc = byte;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0x82f63b78u : 0u);
    table[byte] = crc;
  }
  return table;
}
constexpr std::array<uint32_t, 256> kCrcTable = make_crc_table();

template <class Int>
std::string little_endian(Int value) {
  std::string out;
  for (size_t i = 0; i < sizeof(Int); ++i) out += char(uint8_t(value >> (8 * i)));
  return out;
}

std::string varint(uint64_t value) {
  std::string out;
  for (; value >= 0x80; value >>= 7) out += char(uint8_t(value) | 0x80);
  return out + char(uint8_t(value));
}

// Protobuf fields by wire type: 0 varint, 1 eight bytes, 2 length and bytes, 5 four bytes.
std::string key(int field, int wire_type) { return varint(uint64_t(field) << 3 | wire_type); }
std::string int_field(int field, int64_t value) { return key(field, 0) + varint(uint64_t(value)); }
std::string double_field(int field, double value) {
  return key(field, 1) + little_endian(std::bit_cast<uint64_t>(value));
}
std::string float_field(int field, float value) {
  return key(field, 5) + little_endian(std::bit_cast<uint32_t>(value));
}
std::string bytes_field(int field, std::string_view bytes) {
  std::string out = key(field, 2) + varint(bytes.size());
  out += bytes;
  return out;
}

double wall_clock() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return std::chrono::duration<double>(now).count();
}

// A name that no event file of the folder has.
std::string event_path(const std::string& folder, double wall_time) {
  std::array<char, 256> host{};
  if (::gethostname(host.data(), host.size() - 1) != 0) host = {'h', 'o', 's', 't'};
  const std::string stem = folder + "/events.out.tfevents." + std::to_string(int64_t(wall_time)) +
                           "." + host.data() + "." + std::to_string(::getpid()) + ".";
  int64_t n = 0;
  while (std::filesystem::exists(stem + std::to_string(n))) ++n;
  return stem + std::to_string(n);
}

}  // namespace

uint32_t crc32c(std::string_view bytes) {
  uint32_t crc = ~0u;
  for (const char byte : bytes) crc = (crc >> 8) ^ kCrcTable[(crc ^ uint8_t(byte)) & 0xff];
  return ~crc;
}

uint32_t masked_crc32c(std::string_view bytes) {
  return std::rotr(crc32c(bytes), 15) + 0xa282ead8u;
}

std::string tensorboard_record(std::string_view data) {
  std::string out = little_endian(uint64_t(data.size()));
  out += little_endian(masked_crc32c(out));
  out += data;
  out += little_endian(masked_crc32c(data));
  return out;
}

std::string version_event(double wall_time) {
  return double_field(1, wall_time) + bytes_field(3, "brain.Event:2");
}

std::string restart_event(double wall_time, int64_t step) {
  constexpr int kStart = 1;
  return double_field(1, wall_time) + int_field(2, step) + bytes_field(7, int_field(1, kStart));
}

std::string scalars_event(double wall_time, int64_t step,
                          const std::vector<std::pair<std::string, double>>& values) {
  std::string summary;
  for (const auto& [tag, value] : values) {
    summary += bytes_field(1, bytes_field(1, tag) + float_field(2, float(value)));
  }
  return double_field(1, wall_time) + int_field(2, step) + bytes_field(5, summary);
}

TensorboardWriter::TensorboardWriter(const std::string& folder, int64_t first_step, Warn warn)
    : path_(event_path(folder, wall_clock())), file_(path_, std::move(warn)) {
  const double now = wall_clock();
  file_.append(tensorboard_record(version_event(now)));
  if (first_step > 1) file_.append(tensorboard_record(restart_event(now, first_step)));
}

void TensorboardWriter::write(int64_t step,
                              const std::vector<std::pair<std::string, double>>& values) {
  file_.append(tensorboard_record(scalars_event(wall_clock(), step, values)));
}

}  // namespace sluice
