"""Expert matrix → eigenvectors → spectral embedding → spectral routers."""
