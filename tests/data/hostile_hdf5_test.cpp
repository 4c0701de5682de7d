// Files made with the plain HDF5 API to harm or mislead a reader.
#include <gtest/gtest.h>
#include <hdf5.h>

#include <functional>
#include <vector>

#include "data/hdf5_file.h"
#include "tests/data/data_support.h"

namespace sluice::test {
namespace {

// A file that `build` fills.
void make_file(const std::string& path, const std::function<void(hid_t)>& build) {
  const hid_t file = H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
  ASSERT_GE(file, 0);
  build(file);
  H5Fclose(file);
}

// A dataset "x" of one dim with these creation properties; closes them.
void add_dataset(hid_t file, hid_t properties, hid_t type, hsize_t extent,
                 const void* data = nullptr) {
  const hid_t space = H5Screate_simple(1, &extent, nullptr);
  const hid_t dataset = H5Dcreate2(file, "x", type, space, H5P_DEFAULT, properties, H5P_DEFAULT);
  ASSERT_GE(dataset, 0);
  if (data != nullptr) {
    ASSERT_GE(H5Dwrite(dataset, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, data), 0);
  }
  H5Dclose(dataset);
  H5Sclose(space);
  if (properties != H5P_DEFAULT) H5Pclose(properties);
}

hid_t chunked(hsize_t chunk) {
  const hid_t properties = H5Pcreate(H5P_DATASET_CREATE);
  H5Pset_chunk(properties, 1, &chunk);
  return properties;
}

void expect_refused(const TempFolder& folder, const std::vector<std::string>& words,
                    const std::function<void(hid_t)>& build) {
  const std::string path = folder / "hostile.h5";
  make_file(path, build);
  expect_error<DataError>([&] { Hdf5Reader(path).dataset("x"); }, words);
}

TEST(HostileHdf5, ExternalStorage) {
  const TempFolder folder;
  write_file(folder / "secret", std::string(64, 's'));
  expect_refused(folder, {"/x", "external storage"}, [&](hid_t file) {
    const hid_t properties = H5Pcreate(H5P_DATASET_CREATE);
    H5Pset_external(properties, (folder / "secret").c_str(), 0, 64);
    add_dataset(file, properties, H5T_STD_U8LE, 64);
  });
}

TEST(HostileHdf5, LinksThatAreNotHard) {
  const TempFolder folder;
  make_file(folder / "other.h5",
            [](hid_t file) { add_dataset(file, H5P_DEFAULT, H5T_STD_U8LE, 4, "abcd"); });
  expect_refused(folder, {"/x", "soft and external links"}, [&](hid_t file) {
    H5Lcreate_external((folder / "other.h5").c_str(), "/x", file, "x", H5P_DEFAULT, H5P_DEFAULT);
  });
  expect_refused(folder, {"/y", "soft and external links"}, [](hid_t file) {
    add_dataset(file, H5P_DEFAULT, H5T_STD_U8LE, 4, "abcd");
    H5Lcreate_soft("/x", file, "y", H5P_DEFAULT, H5P_DEFAULT);
  });
}

TEST(HostileHdf5, VirtualDatasets) {
  const TempFolder folder;
  make_file(folder / "other.h5",
            [](hid_t file) { add_dataset(file, H5P_DEFAULT, H5T_STD_U8LE, 4, "abcd"); });
  expect_refused(folder, {"/x", "virtual"}, [&](hid_t file) {
    const hsize_t extent = 4;
    const hid_t space = H5Screate_simple(1, &extent, nullptr);
    const hid_t properties = H5Pcreate(H5P_DATASET_CREATE);
    H5Pset_virtual(properties, space, (folder / "other.h5").c_str(), "/x", space);
    H5Sclose(space);
    add_dataset(file, properties, H5T_STD_U8LE, 4);
  });
}

TEST(HostileHdf5, HugeExtents) {
  const TempFolder folder;
  const hsize_t huge = hsize_t{1} << 40;
  // Nothing is stored of any of these.
  expect_refused(folder, {"declares 1099511627776 bytes"},
                 [&](hid_t file) { add_dataset(file, chunked(1 << 20), H5T_STD_U8LE, huge); });
  expect_refused(folder, {"declares 1099511627776 bytes"},
                 [&](hid_t file) { add_dataset(file, H5P_DEFAULT, H5T_STD_U8LE, huge); });
  expect_refused(folder, {"overflows"}, [&](hid_t file) {
    add_dataset(file, chunked(1 << 20), H5T_STD_I64LE, hsize_t{1} << 61);
  });
  expect_refused(folder, {"declares"}, [&](hid_t file) {
    const hid_t properties = chunked(1 << 20);
    H5Pset_deflate(properties, 9);
    add_dataset(file, properties, H5T_STD_U8LE, huge);
  });
}

// One chunk of a million is stored: the others would read as zeros.
TEST(HostileHdf5, MissingChunks) {
  const TempFolder folder;
  expect_refused(folder, {"expected 3 chunks, got 2"}, [](hid_t file) {
    const hid_t properties = chunked(1000);
    H5Pset_deflate(properties, 9);
    add_dataset(file, properties, H5T_STD_U8LE, 3000);
    const hid_t dataset = H5Dopen2(file, "x", H5P_DEFAULT);
    const std::vector<uint8_t> bytes(2000, 7);
    const hsize_t begin = 1000, count = 2000;
    const hid_t target = H5Dget_space(dataset);
    H5Sselect_hyperslab(target, H5S_SELECT_SET, &begin, nullptr, &count, nullptr);
    const hid_t source = H5Screate_simple(1, &count, nullptr);
    H5Dwrite(dataset, H5T_STD_U8LE, source, target, H5P_DEFAULT, bytes.data());
    H5Sclose(source);
    H5Sclose(target);
    H5Dclose(dataset);
  });
}

TEST(HostileHdf5, FiltersBesidesTheKnown) {
  const TempFolder folder;
  const std::vector<int32_t> values(100, 7);
  expect_refused(folder, {"/x", "filter", "refused"}, [&](hid_t file) {
    const hid_t properties = chunked(100);
    H5Pset_scaleoffset(properties, H5Z_SO_INT, 0);
    add_dataset(file, properties, H5T_STD_I32LE, 100, values.data());
  });
  // The known ones are read.
  make_file(folder / "known.h5", [&](hid_t file) {
    const hid_t properties = chunked(30);
    H5Pset_shuffle(properties);
    H5Pset_deflate(properties, 9);
    H5Pset_fletcher32(properties);
    add_dataset(file, properties, H5T_STD_I32LE, 100, values.data());
  });
  EXPECT_EQ(Hdf5Reader(folder / "known.h5").dataset("x").read<int32_t>(), values);
}

TEST(HostileHdf5, TypesAndRanks) {
  const TempFolder folder;
  expect_refused(folder, {"little-endian"},
                 [](hid_t file) { add_dataset(file, H5P_DEFAULT, H5T_STD_I32BE, 1, "abcd"); });
  expect_refused(folder, {"expected elements of"},
                 [](hid_t file) { add_dataset(file, H5P_DEFAULT, H5T_C_S1, 4, "abcd"); });
  for (const bool null_space : {false, true}) {
    expect_refused(folder, {"expected 1 to 5 dims"}, [&](hid_t file) {
      const hid_t space = H5Screate(null_space ? H5S_NULL : H5S_SCALAR);
      H5Dclose(H5Dcreate2(file, "x", H5T_STD_U8LE, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT));
      H5Sclose(space);
    });
  }
  expect_refused(folder, {"empty"},
                 [](hid_t file) { add_dataset(file, H5P_DEFAULT, H5T_STD_U8LE, 0); });
  expect_refused(folder, {"expected a dataset or a group"}, [](hid_t file) {
    const hid_t type = H5Tcopy(H5T_STD_U8LE);
    H5Tcommit2(file, "x", type, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
    H5Tclose(type);
  });
}

TEST(HostileHdf5, GroupsInACircle) {
  const TempFolder folder;
  expect_refused(folder, {"too deep"}, [](hid_t file) {
    const hid_t group = H5Gcreate2(file, "g", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
    H5Lcreate_hard(file, "g", group, "again", H5P_DEFAULT, H5P_DEFAULT);
    H5Gclose(group);
  });
}

TEST(HostileHdf5, AttributesOfVariableLength) {
  const TempFolder folder;
  const std::string path = folder / "x.h5";
  make_file(path, [](hid_t file) {
    const hid_t type = H5Tcopy(H5T_C_S1);
    H5Tset_size(type, H5T_VARIABLE);
    const hid_t space = H5Screate(H5S_SCALAR);
    const hid_t attribute = H5Acreate2(file, "a", type, space, H5P_DEFAULT, H5P_DEFAULT);
    const char* text = "text";
    H5Awrite(attribute, type, &text);
    H5Aclose(attribute);
    H5Sclose(space);
    H5Tclose(type);
  });
  const Hdf5Reader reader(path);
  expect_error<DataError>([&] { reader.string_attribute("a"); }, {"fixed length"});
  expect_error<DataError>([&] { reader.int_attribute("a"); }, {"i64"});
}

}  // namespace
}  // namespace sluice::test
