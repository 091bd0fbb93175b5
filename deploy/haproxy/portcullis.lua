-- Sends an authorization request to Portcullis with HAProxy's own HTTP client (2.5 or later), and enforces the
-- response. It is the same for every configuration: haproxy.cfg calls it with the address of Portcullis, the timeout in
-- milliseconds, the claim headers, other headers that are set from the response, and the name in Portcullis's
-- certificate.

-- Headers of the connection and the body, which are not forwarded, of HAProxy itself, or set below.
local NOT_SENT = {
    ["connection"] = true, ["content-length"] = true, ["expect"] = true, ["host"] = true,
    ["keep-alive"] = true, ["proxy-connection"] = true, ["te"] = true, ["trailer"] = true,
    ["transfer-encoding"] = true, ["upgrade"] = true,
    ["x-forwarded-method"] = true, ["x-forwarded-uri"] = true, ["x-forwarded-host"] = true,
    ["x-forwarded-proto"] = true,
}

-- Headers of a denial that belong to the connection between Portcullis and HAProxy; all others are sent to the client.
local NOT_PASSED_ON = {
    ["connection"] = true, ["content-length"] = true, ["keep-alive"] = true, ["transfer-encoding"] = true,
}

-- The response to the client if there is no authorization response.
local UNAVAILABLE =
    '{"error":"temporarily_unavailable","error_description":"the token cannot be verified at the moment"}'

-- The names in an argument, which has commas between them, or is `-` if there is none.
local function names(argument)
    local list = {}
    if argument ~= "-" then
        for name in string.gmatch(argument, "[^,]+") do
            list[#list + 1] = name
        end
    end
    return list
end

-- HAProxy indexes the lines of a header from 0.
local function lines(values)
    local list, i = {}, 0
    while values[i] ~= nil do
        list[#list + 1] = values[i]
        i = i + 1
    end
    return list
end

local function set_from(txn, response, names)
    for _, name in ipairs(names) do
        local value = response.headers[name] and response.headers[name][0]
        if value == nil or value == "" then
            txn.http:req_del_header(name)
        else
            txn.http:req_set_header(name, value)
        end
    end
end

-- Whether HAProxy generated this response, which its HTTP client returns if the server sent none.
local function is_generated_by_haproxy(response)
    local cache_control = response.headers and response.headers["cache-control"]
    return cache_control ~= nil and cache_control[0] == "no-cache"
end

local function deny(txn, response)
    local denial
    if response ~= nil and response.status >= 400 and not is_generated_by_haproxy(response) then
        denial = txn:reply({ status = response.status, body = response.body or "" })
        for name, values in pairs(response.headers or {}) do
            if not NOT_PASSED_ON[name] then
                for _, value in ipairs(lines(values)) do
                    denial:add_header(name, value)
                end
            end
        end
    else
        denial = txn:reply({ status = 503, body = UNAVAILABLE })
        denial:add_header("content-type", "application/json")
        denial:add_header("retry-after", "1")
    end
    txn:done(denial)
end

core.register_action("portcullis", { "http-req" }, function(txn, address, timeout, claim_headers, other_headers, server_name)
    -- The client's are removed before authorization. Portcullis denies (400) a request that still has one, so that a
    -- header that was added to portcullis.yaml but not to haproxy.cfg cannot be forged.
    for _, name in ipairs(names(claim_headers)) do
        txn.http:req_del_header(name)
    end
    local request_headers = {}
    for name, values in pairs(txn.http:req_get_headers()) do
        if not NOT_SENT[name] then
            request_headers[name] = lines(values)
        end
    end
    -- The client's request for Portcullis, which reads it from these headers only. req_fhdr is the whole line; req_hdr
    -- would be the part after its last comma.
    request_headers["x-forwarded-method"] = { txn.sf:method() }
    request_headers["x-forwarded-uri"] = { txn.sf:pathq() }
    request_headers["x-forwarded-host"] = { txn.sf:req_fhdr("host") or "" }
    request_headers["x-forwarded-proto"] = { txn.sf:ssl_fc() == 1 and "https" or "http" }

    -- With TLS, HAProxy compares the host of the request with the names in Portcullis's certificate.
    if server_name ~= "-" then
        request_headers["host"] = { server_name }
    end

    local response = core.httpclient():get({ url = address, headers = request_headers, timeout = tonumber(timeout) })

    if response ~= nil and response.status == 200 then
        set_from(txn, response, names(claim_headers))
        set_from(txn, response, names(other_headers))
        txn:set_var("txn.portcullis", "allowed")
        return
    end
    deny(txn, response)
end, 5)

-- HAProxy forwards trailers and has no rule for them: this filter aborts a request with a trailer before it is
-- forwarded.
local Trailers = { id = "no-trailers", flags = filter.FLT_CFG_FL_HTX }
Trailers.__index = Trailers

function Trailers:new()
    return setmetatable({}, Trailers)
end

local function reject_trailers(txn, message)
    if message.channel:is_resp() then
        return filter.CONTINUE
    end
    for block = 0, txn.f:internal_htx_nbblks() - 1 do
        if txn.f:internal_htx_blk_type(tostring(block)) == "HTX_BLK_TLR" then
            return filter.ERROR
        end
    end
    return filter.CONTINUE
end

function Trailers:http_headers(txn, message)
    if not message.channel:is_resp() and txn.f:internal_htx_has_eom() ~= 1 then
        filter.register_data_filter(self, message.channel)
    end
    return reject_trailers(txn, message)
end

-- Returns nothing, which forwards everything.
function Trailers:http_payload(txn, message)
    if reject_trailers(txn, message) == filter.ERROR then
        return filter.ERROR
    end
end

function Trailers:http_end(txn, message)
    return reject_trailers(txn, message)
end

core.register_filter("no-trailers", Trailers, function(trailers)
    return trailers
end)
